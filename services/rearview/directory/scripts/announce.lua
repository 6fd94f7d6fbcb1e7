-- Directory.announce. ARGV[5]: ingress; ARGV[6]: address. Serves an empty store too.
redis.call('SET', prefix .. ':ingress:' .. ARGV[5], ARGV[6], 'PX', lease_ms)
return { is_empty() and 'empty-but-told' or 'ok' }
