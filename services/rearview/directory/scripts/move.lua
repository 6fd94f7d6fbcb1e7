-- Directory.move. ARGV[5..10]: epoch, lane, ingress, now, expiry, forget
local epoch, lane, ingress, now, expiry, forget = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local held = read()
if held.nonce == nonce then return reply('ok', held) end
if not held.tenant or held.epoch ~= epoch then return reply('lost', held) end
unindex(held)
local lease = { epoch = epoch + 1, tenant = held.tenant, lane = lane, ingress = ingress,
                expiry = expiry, open_time = held.open_time, nonce = nonce }
write(lease, now, forget)
return reply('ok', lease)
