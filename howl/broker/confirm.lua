#!lua flags=allow-oom
-- Delete recorded outcomes, and the marks that their tasks are in flight, atomically.
--
-- KEYS        the stream; the hash of tasks in flight
-- ARGV[1..2]  the stream's group, and the number of entries
-- ARGV[3..]   the entries' ids, then the ids of the tasks that ended
--
-- Promise: the marks are deleted whatever became of the stream, whose error is the answer.
--
-- It works while Redis is full (allow-oom), unlike a transaction: Redis 7.0 then queues no command, even if it would
-- make room.

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
