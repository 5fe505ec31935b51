#!lua flags=allow-oom
-- Forget outcomes that are recorded, and that their tasks are in flight, at one instant.
--
-- KEYS        the stream; the hash of what is in flight
-- ARGV[1..2]  the stream's group, and the number of entries
-- ARGV[3..]   the entries' ids, then the ids of the tasks that ended
--
-- Promise: what is in flight is forgotten whatever became of the stream, whose error is the answer.
--
-- It works while Redis is full (allow-oom), which a transaction does not: Redis 7.0 queues no command then, also none
-- that makes room.

local stream, inflight = KEYS[1], KEYS[2]
local group, entries = ARGV[1], tonumber(ARGV[2])

local ids, ended = {}, {}
for at = 3, #ARGV do
  local list = at < 3 + entries and ids or ended
  list[#list + 1] = ARGV[at]
end
local confirmed = redis.pcall('XACK', stream, group, unpack(ids))
local removed = redis.pcall('XDEL', stream, unpack(ids))
if #ended > 0 then
  redis.call('HDEL', inflight, unpack(ended))
end
if type(confirmed) == 'table' and confirmed.err then
  return confirmed
end
return removed
