#!lua
-- Put back the messages that a dead owner held.
--
-- KEYS[1..4]  claims:<owner>, leases, deaths, outcomes
-- KEYS[5..6]  turns:<owner>, dead
-- ARGV[1..2]  owner; prefix of all keys
-- ARGV[3..]   commands, for the last message taken first: kind, tag, count, and `count` values
--               back    list, counter        push to the end the list is taken from, and add one to the counter; for a
--                       [, outcome]          run that had begun, append this outcome, and add a blank at the message's
--                                            end, which makes it `redelivered` (turn.lua)
--               dead    task id, outcome     keep for replay, and append the outcome
--               aside   list                 push the first 64 KB of a message that may not be put back to this list
-- Answer      how many messages were moved; -1 if the owner's lease still runs (renewed since maintenance read it)
--
-- Promise: nothing is moved while the lease runs, and nothing twice; nothing goes to a list other than the one that
-- maintenance read and named, whatever the owner writes meanwhile. Later commands of the owner for these claims are
-- stale, and its next turn is refused until it reports what it holds. Its turn number stays: earlier turns happened.
-- The messages may be of any size: after MOST_BYTES the rest stays for the next round.

local claims, leases, deaths, outcomes, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[6]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local deadline = tonumber(redis.call('ZSCORE', leases, ARGV[1]) or '0')
if deadline > now then
  return -1
end

local prefix = ARGV[2]
local moved, at, bytes, MOST_BYTES = 0, 3, 0, 134217728
if #ARGV > 2 and redis.call('EXISTS', KEYS[5]) == 1 then
  redis.call('HSET', KEYS[5], 'fenced', 1)
end

local function set_aside(list, claim)
  redis.call('LPUSH', list, string.sub(claim, 1, 65536))
  redis.call('LTRIM', list, 0, 999)
end

-- Called first: if it fails, nothing has been moved. A counter that is not a number starts again at 1.
local function count_death(counter)
  if type(redis.pcall('HINCRBY', deaths, counter, 1)) == 'table' then
    redis.call('HSET', deaths, counter, 1)
  end
end

while at <= #ARGV and bytes < MOST_BYTES do
  local kind, tag, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if not count or count < 0 or count % 1 ~= 0 then
    error({err = 'ERR reclaim.lua: a word must say how many values it has'})
  end
  local claim = redis.call('HGET', claims, tag)
  local ends = claim and string.find(claim, '\n', 1, true)
  local list = ends and string.sub(claim, 1, ends - 1)
  bytes = bytes + (claim and #claim or 0)
  if claim and (kind ~= 'back' or not ends or list == ARGV[at + 3]) then
    if not ends then
      set_aside(prefix .. 'unreadable', claim)
    elseif kind == 'dead' then
      redis.call('XADD', outcomes, '*', 'outcome', ARGV[at + 4])
      redis.call('HSET', dead, ARGV[at + 3], claim)
      redis.call('HDEL', deaths, ARGV[at + 3])
    elseif kind == 'aside' then
      set_aside(ARGV[at + 3], claim)
    else
      count_death(ARGV[at + 4])
      local bell = prefix .. 'doorbell:' .. string.match(string.sub(list, #prefix + 1), '^[^\6]*')
      local message = string.sub(claim, ends + 1)
      if count > 2 then -- whatever the owner made of that key, its message goes back
        redis.pcall('XADD', outcomes, '*', 'outcome', ARGV[at + 5])
        message = string.sub(message, -1) == ' ' and message or message .. ' '
      end
      redis.call('RPUSH', list, message)
      redis.call('LPUSH', bell, 1)
      redis.call('PEXPIRE', bell, 60000)
    end
    redis.call('HDEL', claims, tag, 'began:' .. tag)
    moved = moved + 1
  end
  at = at + 3 + count
end
if redis.call('HLEN', claims) == 0 then
  redis.call('ZREM', leases, ARGV[1])
end
return moved
