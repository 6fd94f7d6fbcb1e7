-- Directory.usage_by_replica.
if is_empty() then return { 'empty' } end
local found = { 'ok' }
for _, replica in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':replicas', '(' .. now, '+inf')) do
  local sessions, frames, pixels = usage(prefix .. ':replica:' .. replica)
  if sessions > 0 then
    found[#found + 1] = { replica, whole(sessions), string.format('%.17g', frames),
                          string.format('%.17g', pixels) }
  end
end
return found
