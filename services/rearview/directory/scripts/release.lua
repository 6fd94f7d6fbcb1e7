-- Directory.release. ARGV[5]: epoch
local held = read()
if not held.tenant or held.epoch ~= tonumber(ARGV[5]) then return { 'ok' } end
unindex(held)
redis.call('HDEL', lease_key, 'tenant', 'lane', 'ingress', 'expiry', 'open_time', 'nonce')
redis.call('PEXPIRE', lease_key, remember_ms)
return { 'ok' }
