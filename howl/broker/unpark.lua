#!lua
-- Put parked messages that are almost due back on their queues.
--
-- KEYS[1]  parked: messages with their lists, scored by due time in milliseconds since 1970
-- ARGV[1]  prefix of all keys
-- ARGV[2]  seconds before its due time at which a message goes back
-- ARGV[3]  most messages to look at (and at most MOST); about MOST_BYTES of them at most
-- ARGV[4]  '*' for every list; otherwise ARGV[5..] are the lists that messages may go back to, and the others stay
-- Answer   how many were moved
--
-- Promise: at every instant a message is parked or queued, and it goes back once; an entry without a list goes to
-- `unreadable`. Workers wrote them: their number and size are bounded, because Redis serves nobody else meanwhile.

local MOST, MOST_BYTES = 500, 67108864
local prefix, allowed = ARGV[1], {}
for at = 5, #ARGV do
  allowed[ARGV[at]] = true
end

local clock = redis.call('TIME')
local near = clock[1] * 1000 + tonumber(ARGV[2]) * 1000
local moved, stayed, bytes = 0, 0, 0
-- One by one, because they may be of any size.
while moved + stayed < math.min(tonumber(ARGV[3]), MOST) and bytes < MOST_BYTES do
  local claim = redis.call('ZRANGE', KEYS[1], '-inf', near, 'BYSCORE', 'LIMIT', stayed, 1)[1]
  if not claim then
    break
  end
  bytes = bytes + #claim
  local ends = string.find(claim, '\n', 1, true)
  local list = string.sub(claim, 1, (ends or 1) - 1)
  if not ends then
    redis.call('LPUSH', prefix .. 'unreadable', string.sub(claim, 1, 65536))
    redis.call('LTRIM', prefix .. 'unreadable', 0, 999)
    redis.call('ZREM', KEYS[1], claim)
    moved = moved + 1
  elseif ARGV[4] == '*' or allowed[list] then
    local bell = prefix .. 'doorbell:' .. string.match(string.sub(list, #prefix + 1), '^[^\6]*')
    redis.call('LPUSH', list, string.sub(claim, ends + 1))
    redis.call('LPUSH', bell, 1)
    redis.call('PEXPIRE', bell, 60000)
    redis.call('ZREM', KEYS[1], claim)
    moved = moved + 1
  else
    stayed = stayed + 1
  end
end
return moved
