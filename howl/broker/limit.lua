#!lua flags=allow-oom
-- Scan some of Redis's keys: measure the memory of each user, and remove keys of users over their limit.
--
-- ARGV[1..2]  cursor (`0` at first), and how many keys to scan
-- ARGV[3]     '1' to measure every key exactly, which takes longer
-- ARGV[4]     prefix of all keys
-- ARGV[5..]   two arguments per user: prefix of its keys after that one; whether it is over its limit: 0, 1 or 2
-- Answer      {next cursor (`0`: the end), keys scanned, keys and bytes of the first user, of the second, ...}
--
-- Only keys that a user can make in any number are counted: claims and turns of owners, and queues and doorbells of
-- workers by name.
--
-- Promise: of a user over its limit (1), keys that no living owner needs are removed; of one far over it (2), all keys
-- that the scan meets; and nothing else.

local cursor, count, exact, prefix = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local LENGTH = {hash = 'HLEN', zset = 'ZCARD', stream = 'XLEN', list = 'LLEN', set = 'SCARD'}
-- Most members of a key that are all measured, and how many are sampled of a larger one.
local FEW, SOME = 5000, 100

local function size_of(key)
  local length = LENGTH[redis.call('TYPE', key).ok]
  local all = exact or not length or redis.call(length, key) <= FEW
  return redis.call('MEMORY', 'USAGE', key, 'SAMPLES', all and 0 or SOME) or 0
end

local users = {}
for at = 5, #ARGV, 2 do
  local name = string.match(ARGV[at], '^_by:(.*):$')
  users[#users + 1] = {
    root = prefix .. ARGV[at], over = tonumber(ARGV[at + 1]), keys = 0, bytes = 0,
    queue = prefix .. 'worker.' .. name .. '-', bell = prefix .. 'doorbell:worker.' .. name .. '-',
  }
end

local function begins(key, with)
  return string.sub(key, 1, #with) == with
end

local function look(user, key)
  local own = begins(key, user.root)
  local rest = string.sub(key, #user.root + 1)
  local owner = own and (string.match(rest, '^claims:(.*)') or string.match(rest, '^turns:(.*)'))
  if own and not owner then
    return
  end
  local living = owner and type(redis.pcall('ZSCORE', user.root .. 'leases', owner)) == 'string'
  if user.over == 2 or user.over == 1 and owner and not living then
    redis.call('UNLINK', key)
  else
    user.keys, user.bytes = user.keys + 1, user.bytes + size_of(key)
  end
end

local found = redis.call('SCAN', cursor, 'COUNT', count)
for _, key in ipairs(found[2]) do
  for _, user in ipairs(users) do
    if begins(key, user.root) or begins(key, user.queue) or begins(key, user.bell) then
      look(user, key)
      break
    end
  end
end

local answer = {found[1], #found[2]}
for _, user in ipairs(users) do
  answer[#answer + 1], answer[#answer + 2] = user.keys, user.bytes
end
return answer
