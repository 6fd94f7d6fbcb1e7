-- Directory.reopen. From ARGV[5]: the sessions that replicas hold. Serves an empty store.
local since_key = prefix .. ':empty-since'
if not is_empty() then return { 'ok' } end
redis.call('SET', since_key, whole(now), 'NX', 'PX', remember_ms)
if now - tonumber(redis.call('GET', since_key)) < lease_ms then
  for place = 5, #ARGV do
    if not read(ARGV[place]).tenant then return { 'waits' } end
  end
end
redis.call('SET', KEYS[1], nonce)
redis.call('DEL', since_key)
return { 'ok' }
