-- Directory.renew. ARGV[5..8]: epoch, now, expiry, forget
local epoch, now, expiry, forget = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
local held = read()
if not held.tenant or held.epoch ~= epoch then return reply('lost', held) end
held.expiry = expiry
write(held, now, forget)
return reply('ok', held)
