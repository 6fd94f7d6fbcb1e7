-- Directory.acquire. ARGV[5]: session; from ARGV[6] a lease, its epoch the least that is not enough and its
-- open_time unused; ARGV[14..16]: the tenant's quota of sessions, frames and pixels per second
if is_empty() then return { 'empty' } end
local session, lease = ARGV[5], given(6)
local held = read(session)
if held.nonce == nonce then return reply('ok', session, held) end
if held.tenant and (held.tenant ~= lease.tenant or held.ingress ~= lease.ingress) then
  return reply('held', session, held)
end
local limit = over(held, lease, { tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16]) })
if limit then return { 'over', limit } end
lease.epoch = math.max(held.epoch, lease.epoch) + 1
lease.open_time = held.open_time or whole(now)
lease.nonce = nonce
write(session, held, lease)
return reply('ok', session, lease)
