#!lua
-- Put parked messages whose time is near back on their queues.
--
-- KEYS[1]  parked: messages with their lists, by due time in milliseconds since 1970
-- ARGV[1]  what all keys begin with
-- ARGV[2]  seconds before its time at which a message goes back
-- ARGV[3]  most messages to look at
-- ARGV[4]  '*', or else ARGV[5..] are the lists that messages may go back to, and the others stay
-- Answer   how many were moved
--
-- Promise: a message is parked or queued at every instant, and goes back once.

local prefix, allowed = ARGV[1], {}
for at = 5, #ARGV do
  allowed[ARGV[at]] = true
end

local clock = redis.call('TIME')
local near = clock[1] * 1000 + tonumber(ARGV[2]) * 1000
local moved = 0
for _, claim in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', near, 'BYSCORE', 'LIMIT', 0, ARGV[3])) do
  local list = string.match(claim, '^[^\n]*')
  if ARGV[4] == '*' or allowed[list] then
    local bell = prefix .. 'doorbell:' .. string.match(string.sub(list, #prefix + 1), '^[^\6]*')
    redis.call('LPUSH', list, string.sub(claim, #list + 2))
    redis.call('LPUSH', bell, 1)
    redis.call('PEXPIRE', bell, 60000)
    redis.call('ZREM', KEYS[1], claim)
    moved = moved + 1
  end
end
return moved
