#!lua
-- One turn: what a worker says to its queues, and what it is told.
--
-- KEYS[1..2]  claims:<owner>, turns:<owner>
-- KEYS[3..]   the queues' lists in the order to take from, then the doorbells
-- ARGV[1..2]  what all keys begin with; what this credential's own keys begin with
-- ARGV[3]     owner
-- ARGV[4]     number of this turn
-- ARGV[5]     lease in milliseconds
-- ARGV[6..7]  most messages wanted, most bytes of them (the first may be larger)
-- ARGV[8]     last entry of `revoked` that the worker knows
-- ARGV[9]     how many of KEYS[3..] are lists
-- ARGV[10]    bytes of `outcomes` above which nothing is given out
-- ARGV[11..]  words: kind, tag, count, and `count` values
--               began    task id                       its run has begun
--               note     outcome                       progress: append it while the claim is held
--               settle   task id, outcomes ...         ended like this
--               loose    outcome                       append it, whoever holds what (the tag is empty)
--               ring     doorbell                      wake an idle worker (the tag is empty)
--               back                                   to the end the queue is taken from
--               requeue                                to the end producers push to
--               lost     task id, limit, outcome       its run died: back, or after `limit` deaths dead, with the outcome
--               park     due (milliseconds since 1970) until then, in `parked`
--               aside                                  it cannot be read: to `unreadable`
--               hold                                   still here: said of all that is held (or once, without a tag) after `gap`
-- Answer      {'ok', {tag, list, message, ...}, {stale tag, ...}, {last entry of `revoked`, task id, ...},
--              1 if nothing was given out because of those bytes, otherwise 0}
--             {'old', last number}     a turn that came late: nothing done
--             {'gap', last number}     Redis has forgotten later turns, or the lease ran out and the keeper put back what
--                                      was held: nothing done; say `hold` for what is held
--
-- Promise: a turn happens whole, once, whatever its answer's fate: the same number again gets the same claims and
-- changes nothing. A message is in a queue, in one owner's claims, parked, dead or ended, at every instant; outcomes are
-- appended only for claims the owner still holds. Destinations are written before sources are removed. No JSON is read
-- or written: Lua's loses integers beyond 2^53, empty lists, and what is nested too deeply.
--
-- Redis lets a script have the keys it declares only to who may read and write them. Those that a worker may but write
-- (`outcomes`, say) or but read (`revoked`) are therefore not declared. A Redis Cluster would need them all: none is
-- supported.

local claims, turns = KEYS[1], KEYS[2]
local prefix, own, known = ARGV[1], ARGV[2], ARGV[8]
local revoked = prefix .. 'revoked'
local leases, outcomes, deaths = own .. 'leases', own .. 'outcomes', own .. 'deaths'
local parked, dead, unreadable = own .. 'parked', own .. 'dead', own .. 'unreadable'
local owner, number, lease = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local wanted, bytes, lists = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[9])
local BEGAN = 'began:'

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function tag_of(position)
  return owner .. ':' .. number .. ':' .. position
end

local function split(claim)
  local at = string.find(claim, '\n', 1, true)
  return string.sub(claim, 1, at - 1), string.sub(claim, at + 1)
end

local function wake(bell)
  redis.call('LPUSH', bell, 1)
  redis.call('PEXPIRE', bell, 60000)
end

-- What goes back rings: somebody idle shall come and take it.
local function ring(list)
  wake(prefix .. 'doorbell:' .. string.match(string.sub(list, #prefix + 1), '^[^\6]*'))
end

local MOST_REVOKED = 1000

local function revoked_since(entry)
  local told = {entry}
  for _, item in ipairs(redis.call('XRANGE', revoked, '(' .. entry, '+', 'COUNT', MOST_REVOKED)) do
    told[1] = item[1]
    told[#told + 1] = item[2][2]
  end
  return told
end

local last = tonumber(redis.call('HGET', turns, 'number') or '0')
if number < last then
  return {'old', last}
end

if number == last then -- its answer was lost on the way
  local given = {}
  for position = 1, tonumber(redis.call('HGET', turns, 'given')) do
    local claim = redis.call('HGET', claims, tag_of(position))
    if claim then
      local list, message = split(claim)
      given[#given + 1], given[#given + 2], given[#given + 3] = tag_of(position), list, message
    end
  end
  local stale = {}
  for tag in string.gmatch(redis.call('HGET', turns, 'stale'), '[^\n]+') do
    stale[#stale + 1] = tag
  end
  redis.call('ZADD', leases, now + lease, owner)
  return {'ok', given, stale, revoked_since(known), tonumber(redis.call('HGET', turns, 'full'))}
end

local words, held = {}, nil
local at = 11
while at <= #ARGV do
  local kind, tag, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if kind == 'hold' then
    held = held or {}
    held[tag] = true
  end
  words[#words + 1] = {kind = kind, tag = tag, first = at + 3, count = count}
  at = at + 3 + count
end
local fenced = redis.call('HEXISTS', turns, 'fenced') == 1
if (number ~= last + 1 or fenced) and not held then
  return {'gap', last}
end

local stale, told_stale = {}, {}

local function release(tag)
  redis.call('HDEL', claims, tag, BEGAN .. tag)
end

local function put(side, tag, claim)
  local list, message = split(claim)
  redis.call(side, list, message)
  ring(list)
  release(tag)
end

local function append(word, from)
  for value = word.first + from, word.first + word.count - 1 do
    redis.call('XADD', outcomes, '*', 'outcome', ARGV[value])
  end
end

local act = {
  began = function(word)
    redis.call('HSET', claims, BEGAN .. word.tag, ARGV[word.first])
  end,
  note = function(word)
    append(word, 0)
  end,
  settle = function(word)
    append(word, 1)
    redis.call('HDEL', deaths, ARGV[word.first], 'back:' .. ARGV[word.first])
    release(word.tag)
  end,
  back = function(word, claim)
    put('RPUSH', word.tag, claim)
  end,
  requeue = function(word, claim)
    put('LPUSH', word.tag, claim)
  end,
  lost = function(word, claim)
    local id, limit = ARGV[word.first], tonumber(ARGV[word.first + 1])
    if redis.call('HINCRBY', deaths, id, 1) > limit then
      append(word, 2)
      redis.call('HSET', dead, id, claim)
      redis.call('HDEL', deaths, id)
      release(word.tag)
    else
      put('RPUSH', word.tag, claim)
    end
  end,
  park = function(word, claim)
    redis.call('ZADD', parked, ARGV[word.first], claim)
    release(word.tag)
  end,
  aside = function(word, claim)
    redis.call('LPUSH', unreadable, claim)
    redis.call('LTRIM', unreadable, 0, 999)
    release(word.tag)
  end,
  hold = function() end,
}

for _, word in ipairs(words) do
  if word.kind == 'loose' then
    append(word, 0)
  elseif word.kind == 'ring' then
    wake(ARGV[word.first])
  elseif word.tag ~= '' then
    local claim = redis.call('HGET', claims, word.tag)
    if claim then
      act[word.kind](word, claim)
    elseif not told_stale[word.tag] then
      told_stale[word.tag] = true
      stale[#stale + 1] = word.tag
    end
  end
end

-- After a gap, what this owner does not speak of goes back, the last taken first: so the order is as it was.
local function order(tag)
  local turn, place = string.match(tag, ':(%d+):(%d+)$')
  return tonumber(turn) * 1000000 + tonumber(place)
end

if held then
  local gone = {}
  for _, tag in ipairs(redis.call('HKEYS', claims)) do
    if string.sub(tag, 1, #BEGAN) ~= BEGAN and not held[tag] then
      gone[#gone + 1] = tag
    end
  end
  table.sort(gone, function(a, b) return order(a) > order(b) end)
  for _, tag in ipairs(gone) do
    put('RPUSH', tag, redis.call('HGET', claims, tag))
  end
end

-- Counted by Redis from what is there, so it cannot drift. 90,000 entries take it up to 40 ms, so then once a second;
-- fewer and larger ones, which fill it sooner, up to 100 times a second.
local function backlog()
  local counted = redis.call('GET', outcomes .. ':bytes')
  if not counted then
    counted = redis.call('MEMORY', 'USAGE', outcomes, 'SAMPLES', 0) or 0
    local pause = math.min(1000, math.max(10, math.floor(redis.call('XLEN', outcomes) / 100)))
    redis.call('SET', outcomes .. ':bytes', counted, 'PX', pause)
  end
  return tonumber(counted)
end

local given, position = {}, 0
local told = revoked_since(known)
local full = wanted > 0 and backlog() >= tonumber(ARGV[10])
if wanted > 0 and not full and #told <= MOST_REVOKED then -- what is given out may be among the revoked not yet told
  for key = 3, 2 + lists do
    while position < wanted and (position == 0 or bytes > 0) do
      local message = redis.call('LINDEX', KEYS[key], -1)
      if not message then
        break
      end
      position = position + 1
      redis.call('HSET', claims, tag_of(position), KEYS[key] .. '\n' .. message)
      redis.call('RPOP', KEYS[key])
      given[#given + 1], given[#given + 2], given[#given + 3] = tag_of(position), KEYS[key], message
      bytes = bytes - #message
    end
  end
  if position < wanted and bytes > 0 then -- the queues are empty: whoever waits may go on waiting
    for key = 3 + lists, #KEYS do
      redis.call('LTRIM', KEYS[key], 1, 0)
    end
  end
end

redis.call('HSET', turns, 'number', number, 'given', position, 'stale', table.concat(stale, '\n'), 'full', full and 1 or 0)
redis.call('HDEL', turns, 'fenced')
redis.call('PEXPIRE', turns, 100 * lease)
redis.call('ZADD', leases, now + lease, owner)
return {'ok', given, stale, told, full and 1 or 0}
