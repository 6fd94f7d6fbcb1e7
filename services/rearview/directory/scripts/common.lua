-- Put before every script. One hash per session, and sorted sets that index the leases in force: all of them,
-- those of a tenant, those on a replica. An entry is scored with the millisecond at which its lease expires,
-- and says what the lease takes: "FRAMES PIXELS SESSION". So what counts now is a range of scores. Expired
-- leases stay in force until they are released, moved or forgotten. All keys share one hash tag, so that they
-- lie on one node of a cluster.
--
--   KEYS[1]  the incarnation: is there while the store knows all that it must know
--   ARGV[1]  prefix of all keys       ARGV[3]  milliseconds after which keys are forgotten
--   ARGV[2]  a lease time in ms       ARGV[4]  nonce of this call: a resent call finds its own work done
local prefix, lease_ms, remember_ms, nonce = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local FIELDS = { 'epoch', 'tenant', 'lane', 'ingress', 'expiry', 'open_time', 'frames', 'pixels', 'token',
                 'nonce' }

local function whole(number) return string.format('%.0f', number) end

local function is_empty() return redis.call('EXISTS', KEYS[1]) == 0 end

local function lease_key(session) return prefix .. ':lease:' .. session end

local function read(session)
  local values, row = redis.call('HMGET', lease_key(session), unpack(FIELDS)), {}
  for place, field in ipairs(FIELDS) do row[field] = values[place] end
  row.epoch = tonumber(row.epoch or '0')
  row.expiry = tonumber(row.expiry or '0')
  return row
end

-- The fields of a lease as the caller gave them, from ARGV[first] on.
local function given(first)
  return { epoch = tonumber(ARGV[first]), tenant = ARGV[first + 1], lane = ARGV[first + 2],
           ingress = ARGV[first + 3], open_time = ARGV[first + 4], frames = ARGV[first + 5],
           pixels = ARGV[first + 6], token = ARGV[first + 7] }
end

local function shown(session, row)
  return { session, whole(row.epoch), row.tenant, row.lane, row.ingress, whole(row.expiry), row.open_time,
           row.frames, row.pixels, row.token }
end

local function reply(status, session, row)
  if not row.tenant then return { status } end
  return { status, shown(session, row) }
end

local function entry(session, row) return row.frames .. ' ' .. row.pixels .. ' ' .. session end

local function indexes(row)
  local keys = { prefix .. ':sessions', prefix .. ':tenant:' .. row.tenant }
  for _, replica in ipairs(cjson.decode(row.lane)) do keys[#keys + 1] = prefix .. ':replica:' .. replica end
  return keys
end

local function unindex(session, row)
  if not row.tenant then return end
  for _, key in ipairs(indexes(row)) do redis.call('ZREM', key, entry(session, row)) end
end

local function add(key, member, expiry)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - remember_ms)
  redis.call('ZADD', key, expiry, member)
  redis.call('PEXPIRE', key, remember_ms)
end

-- Puts a lease in force for a lease time from now, in place of `former`.
local function write(session, former, row)
  unindex(session, former)
  row.expiry = now + lease_ms
  redis.call('HSET', lease_key(session), 'epoch', whole(row.epoch), 'tenant', row.tenant, 'lane', row.lane,
    'ingress', row.ingress, 'expiry', whole(row.expiry), 'open_time', row.open_time, 'frames', row.frames,
    'pixels', row.pixels, 'token', row.token, 'nonce', row.nonce)
  redis.call('PEXPIRE', lease_key(session), remember_ms)
  for _, key in ipairs(indexes(row)) do add(key, entry(session, row), row.expiry) end
  for _, replica in ipairs(cjson.decode(row.lane)) do add(prefix .. ':replicas', replica, row.expiry) end
end

-- What the leases of an index take that count now: sessions, frames and pixels per second.
local function usage(key)
  local frames, pixels = 0, 0
  local entries = redis.call('ZRANGEBYSCORE', key, '(' .. now, '+inf')
  for _, each in ipairs(entries) do
    local its_frames, its_pixels = string.match(each, '^(%S+) (%S+) ')
    frames, pixels = frames + tonumber(its_frames), pixels + tonumber(its_pixels)
  end
  return #entries, frames, pixels
end

-- What of a tenant's quota (sessions, frames and pixels per second) would be exceeded by `row` in place of its
-- session's lease `held`, if anything.
local function over(held, row, quota)
  local sessions, frames, pixels = usage(prefix .. ':tenant:' .. row.tenant)
  if held.tenant and held.expiry > now then
    sessions, frames, pixels = sessions - 1, frames - held.frames, pixels - held.pixels
  end
  local wanted, rounding = { sessions + 1, frames + row.frames, pixels + row.pixels }, 1 + 1e-9
  for place, limit in ipairs({ 'sessions', 'frames', 'pixels' }) do
    if wanted[place] > quota[place] * rounding then return limit end
  end
end

-- Whether the owner of `row` has lost the session: somebody else has its epoch or a newer one, or it ended.
local function is_lost(held, row)
  if held.epoch ~= row.epoch then return held.epoch > row.epoch end
  return not held.tenant or (held.ingress ~= row.ingress and held.ingress ~= '')
end
