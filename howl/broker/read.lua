#!lua flags=allow-oom
-- Read, within limits, a hash or a sorted set that a worker may have written.
--
-- KEYS[1]     the key
-- ARGV[1]     'hash', or 'zset'
-- ARGV[2..3]  most members to read, and bytes of all after which no more are read
-- ARGV[4]     most bytes of a member with its value
-- ARGV[5]     'remove' larger members, or a key of a type other than ARGV[1]; or 'leave' them
-- ARGV[6]     bytes of each member and value that are returned (0: all of them)
-- ARGV[7..8]  of a sorted set: lowest and highest score
-- Answer      {type, members too large, their bytes, member, value or score, ...}; of another type nothing is read
--
-- Promise: no answer has more than twice ARGV[3] bytes, or ARGV[3] bytes and one member; nothing within the limits is
-- removed. A sorted set is read from its lowest score on, a hash in Redis's order.

local key, kind = KEYS[1], ARGV[1]
local most, all, largest = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local remove, cut = ARGV[5] == 'remove', tonumber(ARGV[6])
local lowest, highest = ARGV[7], ARGV[8]

-- Bytes of members after which one call looks at no more: the call blocks everyone else.
local MOST_LOOKED_AT = 32 * 1024 * 1024

local is = redis.call('TYPE', key).ok
if is ~= kind then
  if is ~= 'none' and remove then
    redis.call('UNLINK', key)
  end
  return {is, 0, 0}
end

local answer, number, told, looked = {is, 0, 0}, 0, 0, 0

local function part(text)
  return cut > 0 and string.sub(text, 1, cut) or text
end

-- Return whether a member is too large, and whether it stays in the key.
local function too_large(member, size)
  if size <= largest then
    return false, true
  end
  answer[2], answer[3] = answer[2] + 1, answer[3] + size
  if remove then
    redis.call(kind == 'hash' and 'HDEL' or 'ZREM', key, member)
  end
  return true, not remove
end

local function tell(member, value)
  number = number + 1
  answer[#answer + 1], answer[#answer + 2] = part(member), part(value)
  told = told + #answer[#answer] + #answer[#answer - 1]
end

local function over()
  return number >= most or told >= all or looked >= MOST_LOOKED_AT
end

local function fits(count)
  return count <= most and redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0) <= all
end

local function read_field(field)
  local size = #field + redis.call('HSTRLEN', key, field)
  looked = looked + #field
  if not too_large(field, size) then
    looked = looked + size
    tell(field, redis.call('HGET', key, field))
  end
end

-- Names only, for Redis cannot return a part of a value.
local function read_some_fields()
  for _, field in ipairs(redis.call('HKEYS', key)) do
    read_field(field)
    if over() then
      return
    end
  end
end

local function read_many_fields()
  local cursor, steps = '0', 0
  repeat
    local found = redis.call('HSCAN', key, cursor, 'COUNT', 1)
    for at = 1, #found[2], 2 do
      read_field(found[2][at])
    end
    cursor, steps = found[1], steps + 1
  until cursor == '0' or over() or steps > 2 * most
end

if kind == 'hash' then
  local count = redis.call('HLEN', key)
  if fits(count) then
    local found = redis.call('HGETALL', key)
    for at = 1, #found, 2 do
      if not too_large(found[at], #found[at] + #found[at + 1]) then
        tell(found[at], found[at + 1])
      end
    end
  elseif count <= most then
    read_some_fields()
  else
    read_many_fields()
  end
else
  local place = lowest == '-inf' and 0 or redis.call('ZCOUNT', key, '-inf', '(' .. lowest)
  local last = place + redis.call('ZCOUNT', key, lowest, highest)
  local at_once = fits(redis.call('ZCARD', key)) and most or 1
  while place < last and not over() do
    local found = redis.call('ZRANGE', key, place, math.min(place + at_once, last) - 1, 'WITHSCORES')
    for at = 1, #found, 2 do
      looked = looked + #found[at]
      local large, stays = too_large(found[at], #found[at])
      if not large then
        tell(found[at], found[at + 1])
      end
      place, last = place + (stays and 1 or 0), last - (stays and 0 or 1)
    end
  end
end
if looked > all then
  collectgarbage() -- Lua would keep it for long
end
return answer
