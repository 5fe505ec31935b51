#!lua
-- Push a submitted task's message once.
--
-- KEYS[1]  hash of tasks in flight: task id -> Unix time of the push
-- KEYS[2]  the queue's list
-- KEYS[3]  the queue's doorbell, which wakes one idle worker
-- ARGV[1]  task id
-- ARGV[2]  the message, as kombu writes it
-- Answer   1 pushed; 0 already in flight, nothing done
--
-- Promise: however often it is repeated for one task id, the queue gets one message until the recorder has recorded
-- the task's end and removes the mark. The message is pushed before the mark is set: an error between the two can at
-- worst look like "not pushed", which is repeated, and never like "pushed" when the message is nowhere.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  return 0
end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1])
redis.call('LPUSH', KEYS[3], 1)
redis.call('PEXPIRE', KEYS[3], 60000)
return 1
