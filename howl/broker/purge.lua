#!lua
-- Remove messages for good, and append how their tasks ended.
--
-- KEYS[1]   a queue's list, or `parked`, or `unknown`
-- KEYS[2]   outcomes
-- ARGV[1]   most positions, from the end that workers take from, in which a list is searched for a message
-- ARGV[2..] pairs: message (list and message if KEYS[1] is no list), outcome (empty: its task is not known)
-- Answer    how many were removed
--
-- Promise: a message is where it was, or its outcome is in the stream. One that a worker took in the meantime is left
-- alone, and so is one that is not found soon, until the next call. Outcomes are appended before messages are removed.

local listed = redis.call('TYPE', KEYS[1]).ok == 'list'
-- Most bytes compared in all: a worker may push, in front of each message, thousands that differ in the last byte.
local left = 268435456

local function is_there(message)
  if listed then
    local cost = math.max(#message, 64)
    local far = math.max(1, math.min(tonumber(ARGV[1]), math.floor(left / cost)))
    local position = redis.call('LPOS', KEYS[1], message, 'RANK', -1, 'MAXLEN', far)
    left = left - cost * (position and redis.call('LLEN', KEYS[1]) - position or far)
    return position
  end
  return redis.call('ZSCORE', KEYS[1], message)
end

local gone = 0
for at = 2, #ARGV, 2 do
  local message, outcome = ARGV[at], ARGV[at + 1]
  if is_there(message) then
    if outcome ~= '' then
      redis.call('XADD', KEYS[2], '*', 'outcome', outcome)
    end
    if listed then
      redis.call('LREM', KEYS[1], -1, message)
    else
      redis.call('ZREM', KEYS[1], message)
    end
    gone = gone + 1
  end
end
return gone
