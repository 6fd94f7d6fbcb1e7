-- Claims.claims. ARGV[5]: what keys begin with
if is_empty() then return { 'empty' } end
local found = { 'ok' }
for _, key in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':claims', '(' .. now, '+inf')) do
  if string.sub(key, 1, #ARGV[5]) == ARGV[5] then
    local values = redis.call('HMGET', prefix .. ':claim:' .. key, 'owner', 'number', 'expiry')
    found[#found + 1] = { key, values[1], values[2], values[3] }
  end
end
return found
