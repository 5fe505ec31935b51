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
-- Promise: however often it is repeated for one task id, the queue gets one message until the recorder, having
-- recorded the task's end, removes the mark. The message is pushed before the mark is set: an error between the
-- two can at worst be seen as "not pushed", which is repeated, and never as "pushed" of a message that is nowhere.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  return 0
end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1])
redis.call('LPUSH', KEYS[3], 1)
redis.call('PEXPIRE', KEYS[3], 60000)
return 1
