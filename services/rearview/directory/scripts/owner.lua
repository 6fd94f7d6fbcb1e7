-- Directory.owner_of. ARGV[5]: session
if is_empty() then return { 'empty' } end
local row = read(ARGV[5])
if not row.tenant then return { 'ok' } end
return { 'ok', shown(ARGV[5], row), redis.call('GET', prefix .. ':ingress:' .. row.ingress) }
