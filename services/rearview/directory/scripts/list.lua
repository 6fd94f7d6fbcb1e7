-- Directory.list and leases_on. ARGV[5]: the index, without the prefix
if is_empty() then return { 'empty' } end
local found = { 'ok' }
for _, each in ipairs(redis.call('ZRANGE', prefix .. ':' .. ARGV[5], 0, -1)) do
  local session = string.match(each, '^%S+ %S+ (.*)$')
  local row = read(session)
  if row.tenant then found[#found + 1] = shown(session, row) end
end
return found
