-- Directory.renew. ARGV[5]: session; from ARGV[6] the whole lease. Serves an empty store too.
local session, lease = ARGV[5], given(6)
local held = read(session)
if is_lost(held, lease) then return reply('lost', session, held) end
lease.nonce = held.epoch == lease.epoch and held.nonce or nonce
write(session, held, lease)
return reply('ok', session, lease)
