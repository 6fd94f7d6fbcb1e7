-- Put before every script. One hash per session; sorted sets index the leases in force by tenant and by
-- replica, scored with the second at which the entry is forgotten. Names of index keys are made here: all
-- keys share one hash tag, so that they lie on one node of a cluster.
--
--   KEYS[1]  the session's hash: epoch, and while a lease is in force tenant, lane, ingress, expiry,
--            open_time, and the nonce of the call that made it
--   ARGV[1]  prefix of all keys        ARGV[3]  milliseconds after which keys are forgotten
--   ARGV[2]  session id                ARGV[4]  nonce of this call: a resent call finds its own work done
local lease_key, prefix, session, remember_ms, nonce = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function read()
  local row = redis.call('HMGET', lease_key,
    'epoch', 'tenant', 'lane', 'ingress', 'expiry', 'open_time', 'nonce')
  return { epoch = tonumber(row[1] or '0'), tenant = row[2], lane = row[3], ingress = row[4],
           expiry = row[5], open_time = row[6], nonce = row[7] }
end

local function reply(status, row)
  if not row.tenant then return { status } end
  return { status, string.format('%.0f', row.epoch), row.tenant, row.lane, row.ingress, row.expiry,
           row.open_time }
end

local function unindex(row)
  if not row.tenant then return end
  redis.call('ZREM', prefix .. ':sessions', session)
  redis.call('ZREM', prefix .. ':tenant:' .. row.tenant, session)
  for _, replica in ipairs(cjson.decode(row.lane)) do
    local key = prefix .. ':replica:' .. replica
    redis.call('ZREM', key, session)
    if redis.call('EXISTS', key) == 0 then redis.call('ZREM', prefix .. ':replicas', replica) end
  end
end

local function add(key, member, now, forget)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  redis.call('ZADD', key, forget, member)
  redis.call('PEXPIRE', key, remember_ms)
end

local function index(row, now, forget)
  add(prefix .. ':sessions', session, now, forget)
  add(prefix .. ':tenant:' .. row.tenant, session, now, forget)
  for _, replica in ipairs(cjson.decode(row.lane)) do
    add(prefix .. ':replica:' .. replica, session, now, forget)
    add(prefix .. ':replicas', replica, now, forget)
  end
end

local function write(row, now, forget)
  redis.call('HSET', lease_key, 'epoch', string.format('%.0f', row.epoch), 'tenant', row.tenant,
    'lane', row.lane, 'ingress', row.ingress, 'expiry', row.expiry, 'open_time', row.open_time,
    'nonce', row.nonce)
  redis.call('PEXPIRE', lease_key, remember_ms)
  index(row, now, forget)
end
