#!lua
-- Store the progress of tasks.
--
-- KEYS        progress:<task id>, one per task
-- ARGV[1]     seconds for which progress is kept
-- ARGV[2..]   one per key: a JSON object that begins with its "order", of fixed width
-- Answer      how many were set
--
-- Promise: progress only moves forward; an order that is not greater than the stored one changes nothing.

local set = 0
for at, key in ipairs(KEYS) do
  local document = ARGV[at + 1]
  local known = redis.pcall('GETRANGE', key, 0, 63)
  -- Anyone who may write the key may have stored something else there, which is replaced.
  local before = type(known) == 'string' and string.match(known, '^{"order": "([%d.]+)"') or ''
  if string.match(document, '^{"order": "([%d.]+)"') > before then
    redis.call('SET', key, document, 'EX', ARGV[1])
    set = set + 1
  end
end
return set
