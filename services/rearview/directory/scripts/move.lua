-- Directory.move. ARGV[5]: session; from ARGV[6] the lease that is moved; ARGV[14..16]: lane, ingress, and the
-- least epoch that is not enough
if is_empty() then return { 'empty' } end
local session, lease = ARGV[5], given(6)
local held = read(session)
if held.nonce == nonce then return reply('ok', session, held) end
if is_lost(held, lease) then return reply('lost', session, held) end
lease.lane, lease.ingress = ARGV[14], ARGV[15]
lease.epoch = math.max(lease.epoch, tonumber(ARGV[16])) + 1
lease.nonce = nonce
write(session, held, lease)
return reply('ok', session, lease)
