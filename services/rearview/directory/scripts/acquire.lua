-- Directory.acquire. ARGV[5..12]: tenant, lane, ingress, now, expiry, forget, min_epoch, takeover (0 or 1)
local tenant, lane, ingress, now, expiry, forget = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local min_epoch, takeover = tonumber(ARGV[11]), ARGV[12] == '1'
local held = read()
if held.nonce == nonce then return reply('ok', held) end
if held.tenant then
  local expired = tonumber(held.expiry) <= tonumber(now)
  local may = held.tenant == tenant and (held.ingress == ingress or (takeover and expired))
  if not may then return reply('held', held) end
end
unindex(held)
local lease = { epoch = math.max(held.epoch, min_epoch) + 1, tenant = tenant, lane = lane,
                ingress = ingress, expiry = expiry, open_time = held.open_time or now, nonce = nonce }
write(lease, now, forget)
return reply('ok', lease)
