-- Directory.charge. ARGV[5]: session; from ARGV[6] its lease with the load that is asked; ARGV[14..16]: the
-- tenant's quota of sessions, frames and pixels per second
if is_empty() then return { 'empty' } end
local session, lease = ARGV[5], given(6)
local held = read(session)
if held.nonce == nonce then return reply('ok', session, held) end
if not held.tenant or (held.ingress ~= lease.ingress and held.ingress ~= '') then
  return reply('lost', session, held)
end
local more_frames = tonumber(lease.frames) > tonumber(held.frames)
local more_pixels = tonumber(lease.pixels) > tonumber(held.pixels)
if more_frames or more_pixels then
  local limit = over(held, lease, { tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16]) })
  if limit then return { 'over', limit } end
end
held.frames, held.pixels, held.nonce = lease.frames, lease.pixels, nonce
write(session, read(session), held)
return reply('ok', session, held)
