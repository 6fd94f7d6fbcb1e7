-- Directory.renew_all. From ARGV[5], nine by nine: a session and its whole lease. Serves an empty store too.
-- A lease that is renewed is as it was told, but for its expiry.
local found = { 'ok' }
for first = 5, #ARGV, 9 do
  local session, lease = ARGV[first], given(first + 1)
  local held = read(session)
  if is_lost(held, lease) then
    found[#found + 1] = reply('lost', session, held)
  else
    lease.nonce = held.epoch == lease.epoch and held.nonce or nonce
    write(session, held, lease)
    found[#found + 1] = { 'ok', whole(lease.expiry) }
  end
end
return found
