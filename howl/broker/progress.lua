#!lua
-- Show how far tasks are.
--
-- KEYS        progress:<task id>, one a task
-- ARGV[1]     seconds for which it is kept
-- ARGV[2..]   one a key: a JSON object that begins with its "order", of fixed width
-- Answer      how many were set
--
-- Promise: what is known moves only forward; an order that is not greater than the known one changes nothing.

local set = 0
for at, key in ipairs(KEYS) do
  local document = ARGV[at + 1]
  local known = redis.pcall('GETRANGE', key, 0, 63)
  -- Whoever may write keys may have made it something else, which is replaced.
  local before = type(known) == 'string' and string.match(known, '^{"order": "([%d.]+)"') or ''
  if string.match(document, '^{"order": "([%d.]+)"') > before then
    redis.call('SET', key, document, 'EX', ARGV[1])
    set = set + 1
  end
end
return set
