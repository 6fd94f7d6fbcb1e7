-- Claims.claim, keep_claim, drop_claim. ARGV[5]: key; ARGV[6]: owner, or empty: whoever has the number;
-- ARGV[7]: its number, 0 for a new claim; ARGV[8]: milliseconds that it holds, 0: no longer
if is_empty() then return { 'empty' } end
local key, owner, number, ttl = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local claim_key, index = prefix .. ':claim:' .. key, prefix .. ':claims'
local values = redis.call('HMGET', claim_key, 'owner', 'number', 'expiry')
local held = { owner = values[1], number = tonumber(values[2] or '0'), expiry = tonumber(values[3] or '0') }
local is_held = held.owner and held.expiry > now
if number > 0 then
  if held.number ~= number or not held.owner then return { 'lost' } end
  owner = held.owner
elseif is_held and held.owner ~= owner then
  return { 'ok', { key, held.owner, whole(held.number), whole(held.expiry) } }
else
  -- By the clock, so that it grows although the store has lost what it gave before.
  number = is_held and held.number or math.max(held.number + 1, now)
end
if ttl == 0 then
  redis.call('HDEL', claim_key, 'owner', 'expiry')
  redis.call('ZREM', index, key)
  return { 'ok' }
end
redis.call('HSET', claim_key, 'owner', owner, 'number', whole(number), 'expiry', whole(now + ttl))
redis.call('PEXPIRE', claim_key, remember_ms + ttl)
redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
redis.call('ZADD', index, now + ttl, key)
redis.call('PEXPIRE', index, remember_ms + ttl)
return { 'ok', { key, owner, whole(number), whole(now + ttl) } }
