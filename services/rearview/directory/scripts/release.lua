-- Directory.release. ARGV[5]: session; from ARGV[6] the lease. Serves an empty store too.
local session, lease = ARGV[5], given(6)
local held = read(session)
if is_lost(held, lease) then return { 'ok' } end
unindex(session, held)
redis.call('DEL', lease_key(session))
redis.call('HSET', lease_key(session), 'epoch', whole(lease.epoch))
redis.call('PEXPIRE', lease_key(session), remember_ms)
return { 'ok' }
