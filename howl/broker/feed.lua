#!lua
-- Put parked messages whose time is near back on their queues.
--
-- KEYS[1]  parked: messages with their lists, by due time in milliseconds since 1970
-- KEYS[2]  leases (its name tells the prefix)
-- ARGV[1]  seconds before its time at which a message goes back
-- ARGV[2]  most messages to move
-- Answer   how many were moved
--
-- Promise: a message is parked or queued at every instant, and goes back once.

local clock = redis.call('TIME')
local near = clock[1] * 1000 + tonumber(ARGV[1]) * 1000
local prefix = string.sub(KEYS[2], 1, -#'leases' - 1)
local due = redis.call('ZRANGE', KEYS[1], '-inf', near, 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, claim in ipairs(due) do
  local cut = string.find(claim, '\n', 1, true)
  local list = string.sub(claim, 1, cut - 1)
  local bell = prefix .. 'doorbell:' .. string.match(string.sub(list, #prefix + 1), '^[^\6]*')
  redis.call('LPUSH', list, string.sub(claim, cut + 1))
  redis.call('LPUSH', bell, 1)
  redis.call('PEXPIRE', bell, 60000)
  redis.call('ZREM', KEYS[1], claim)
end
return #due
