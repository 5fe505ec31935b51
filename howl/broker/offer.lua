#!lua
-- Put back a message whose task its worker does not know.
--
-- KEYS[1]  unknown: messages with their lists, scored by when they were returned, in milliseconds since 1970
-- KEYS[2]  the list
-- KEYS[3]  the doorbell of its queue
-- ARGV[1]  the list and the message, as stored in `unknown`
-- ARGV[2]  the message as it is to be pushed
-- Answer   1 if it was moved, 0 if it is no longer there
--
-- Promise: at every instant the message is in `unknown` or queued, and it goes back once, even if others do the same.

if redis.call('ZSCORE', KEYS[1], ARGV[1]) == false then
  return 0
end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('LPUSH', KEYS[3], 1)
redis.call('PEXPIRE', KEYS[3], 60000)
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
