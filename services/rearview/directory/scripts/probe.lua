-- Fails as long as the scripts that write do.
redis.call('SET', prefix .. ':probe', nonce, 'PX', lease_ms)
return { 'ok' }
