#!lua
-- One turn: a worker's commands about its claims, and Redis's answer with new claims.
--
-- KEYS[1..2]  claims:<owner>, turns:<owner>
-- KEYS[3..]   the queues' lists in the order to take from, then the doorbells
-- ARGV[1..2]  prefix of all keys; prefix of this credential's own keys
-- ARGV[3]     owner
-- ARGV[4]     number of this turn
-- ARGV[5]     lease in milliseconds
-- ARGV[6..7]  most messages wanted, most bytes of them (the first may be larger); at most MOST and MOST_BYTES
-- ARGV[8]     last entry of `revoked` that the worker has read
-- ARGV[9]     how many of KEYS[3..] are lists
-- ARGV[10]    bytes of `outcomes` above which nothing is given out
-- ARGV[11..]  commands: kind, tag, count, and `count` values
--               began    task id                       its run has begun
--               note     outcome                       progress: append it while the claim is held
--               settle   task id, outcomes ...         its run ended with these
--               loose    outcome                       append it, whatever is held (the tag is empty)
--               ring     doorbell                      wake an idle worker (the tag is empty)
--               back     [1]                           to the end the queue is taken from; 1 if its run had begun
--               requeue  [1]                           to the end producers push to; 1 likewise
--               lost     task id, limit, outcome       its run died, or was broken off: put it back, or after `limit`
--                                                      times move it to `dead` and append the outcome
--               park     due (milliseconds since 1970) to `parked` until then
--               unknown                                its worker does not know this task: to `unknown`
--               aside                                  it cannot be read: to `unreadable`
--               hold                                   still held: sent after `gap` for each claim (or once, with no
--                                                      tag)
-- Answer      {'ok', {tag, list, message, ...}, {stale tag, ...}, {last entry of `revoked`, its fields, ...},
--              1 if ARGV[10] kept messages back, otherwise 0, milliseconds since 1970}
--             {'old', last number}     a late turn: nothing done
--             {'gap', last number}     Redis has lost later turns, or the lease ran out and maintenance put back the
--                                      claims: nothing done; send `hold` for each claim
-- Error       a count makes no sense, or the owner has more claims than it reported: nothing is done, except that in
--             the second case the lease ends, and maintenance puts all claims back
--
-- Promise: a turn happens whole and once, even if its answer is lost: the same number again gets the same claims and
-- changes nothing. At every instant a message is in a queue, in one owner's claims, parked, unknown, dead or ended;
-- outcomes are appended only for claims the owner still holds. Destinations are written before sources are removed. No
-- JSON is read or written: Lua's JSON loses integers beyond 2^53, empty lists, and values nested too deeply. A blank at
-- a message's end, which JSON allows, marks that its run had begun: to the next worker it is `redelivered`.
--
-- Anyone with the credential may call this with any arguments, and write anything to the keys that it reads, and Redis
-- serves nobody else meanwhile. So its time is proportional to its arguments and its answer: numbers are whole and
-- bounded, and the size of what an earlier turn left is checked before it is read.
--
-- Redis allows a script the keys that it declares only if the caller may read and write them. Keys that a worker may
-- only write (such as `outcomes`) or only read (`revoked`) are therefore not declared. A Redis Cluster would need all
-- of them: it is not supported.

local claims, turns = KEYS[1], KEYS[2]
local prefix, own, known = ARGV[1], ARGV[2], ARGV[8]
local revoked = prefix .. 'revoked'
local leases, outcomes, deaths = own .. 'leases', own .. 'outcomes', own .. 'deaths'
local parked, unknown, dead, unreadable = own .. 'parked', own .. 'unknown', own .. 'dead', own .. 'unreadable'
local owner = ARGV[3]
local BEGAN = 'began:'
-- Most messages given out and commands other than `hold`, as in the session; bytes given out; values of those commands;
-- values in ARGV, of which a worker that holds 50,000 messages needs 150,000.
local MOST, MOST_BYTES, MOST_VALUES, MOST_SAID = 1000, 8388608, 6000, 200000
-- Most keys; highest turn number; milliseconds of a lease; digits of any number; bytes of a tag.
local MOST_KEYS, MOST_TURNS, MOST_LEASE, DIGITS, TAG = 10000, 1e12, 1e10, 16, 600

local function refuse(why)
  error({err = 'ERR turn.lua: ' .. why})
end

local function whole(value, most, what)
  local found = tonumber(value)
  if not found or found < 0 or found > most or found % 1 ~= 0 then
    refuse(string.format('%s must be a whole number up to %.0f', what, most))
  end
  return found
end

-- Return a number that an earlier turn, or anyone with the credential, left in `turns`.
local function left(name, most)
  if redis.call('HSTRLEN', turns, name) > DIGITS then
    refuse(name .. ' of the last turn is too long')
  end
  return whole(redis.call('HGET', turns, name) or 0, most, name .. ' of the last turn')
end

local function bound(said, most)
  if said > most then
    refuse('more is said in one turn than any worker has to say')
  end
end

bound(#ARGV, MOST_SAID)
bound(#KEYS, MOST_KEYS)
local number, lease = whole(ARGV[4], MOST_TURNS, 'number'), whole(ARGV[5], MOST_LEASE, 'lease')
local wanted, bytes = whole(ARGV[6], MOST, 'wanted'), whole(ARGV[7], MOST_BYTES, 'bytes')
local lists, limit = whole(ARGV[9], #KEYS - 2, 'lists'), whole(ARGV[10], 1e15, 'limit')

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function tag_of(turn, position)
  return owner .. ':' .. turn .. ':' .. position
end

local function split(claim)
  local at = string.find(claim, '\n', 1, true)
  if not at then
    refuse('a claim names no list')
  end
  return string.sub(claim, 1, at - 1), string.sub(claim, at + 1)
end

local function wake(bell)
  redis.call('LPUSH', bell, 1)
  redis.call('PEXPIRE', bell, 60000)
end

-- A message that goes back rings, so that an idle worker takes it.
local function ring(list)
  wake(prefix .. 'doorbell:' .. string.match(string.sub(list, #prefix + 1), '^[^\6]*'))
end

local MOST_REVOKED = 1000

local function revoked_since(entry)
  local told = {entry}
  for _, item in ipairs(redis.call('XRANGE', revoked, '(' .. entry, '+', 'COUNT', MOST_REVOKED)) do
    told[1] = item[1]
    told[#told + 1] = item[2]
  end
  return told
end

local last = left('number', MOST_TURNS)
if number < last then
  return {'old', last}
end

if number == last then -- its answer was lost on the way
  local given = {}
  for position = 1, left('given', MOST) do
    local tag = tag_of(number, position)
    local claim = redis.call('HGET', claims, tag)
    if claim then
      if #given > 0 and bytes <= 0 then
        refuse('the claims of the last turn have grown')
      end
      local list, message = split(claim)
      given[#given + 1], given[#given + 2], given[#given + 3] = tag, list, message
      bytes = bytes - #message
    end
  end
  if redis.call('HSTRLEN', turns, 'stale') > TAG * #ARGV then -- no more than were spoken of
    refuse('stale of the last turn is too long')
  end
  local stale, told = {}, redis.call('HGET', turns, 'stale') or ''
  local from = 1
  while from <= #told do
    local to = string.find(told, '\n', from, true) or #told + 1
    stale[#stale + 1] = string.sub(told, from, to - 1)
    from = to + 1
    if #stale > #ARGV then
      refuse('stale of the last turn is too long')
    end
  end
  redis.call('ZADD', leases, now + lease, owner)
  return {'ok', given, stale, revoked_since(known), left('full', 1), now}
end

local commands, held, acting, values = {}, nil, 0, 0
local at = 11
while at <= #ARGV do
  local kind, tag, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if not count or count < 0 or count % 1 ~= 0 or at + 2 + count > #ARGV then
    refuse('a command must have as many values as it says')
  end
  if kind == 'hold' then
    held = held or {}
    held[tag] = true
  else
    acting, values = acting + 1, values + count
  end
  commands[#commands + 1] = {kind = kind, tag = tag, first = at + 3, count = count}
  at = at + 3 + count
end
bound(acting, MOST)
bound(values, MOST_VALUES)
local fenced = redis.call('HEXISTS', turns, 'fenced') == 1
if (number ~= last + 1 or fenced) and not held then
  return {'gap', last}
end

-- After a gap, claims of the last turn that this owner does not report go back, the last taken first, which keeps the
-- order. There are no others: what ended in the last seconds, it sends again. Should there be any (if Redis has gone
-- back much further), they are not searched for here, where reading a million field names would block everyone.
local unheard = {}
if held then
  local counted = 0
  local function count(tag)
    local there = redis.call('HEXISTS', claims, tag)
    counted = counted + there + redis.call('HEXISTS', claims, BEGAN .. tag)
    return there == 1
  end
  for tag in pairs(held) do
    held[tag] = count(tag)
  end
  for position = left('given', MOST), 1, -1 do
    local tag = tag_of(last, position)
    if held[tag] == nil and count(tag) then
      unheard[#unheard + 1] = tag
    end
  end
  if redis.call('HLEN', claims) ~= counted then
    redis.call('ZADD', leases, now, owner)
    refuse('it holds more than it says: all of it goes back first')
  end
end

local stale, told_stale = {}, {}

local function release(tag)
  redis.call('HDEL', claims, tag, BEGAN .. tag)
end

local function put(side, tag, claim, again)
  local list, message = split(claim)
  if again and string.sub(message, -1) ~= ' ' then
    message = message .. ' '
  end
  redis.call(side, list, message)
  ring(list)
  release(tag)
end

-- Outcomes appended in this turn, and their bytes, about, with Redis's overhead for each.
local appended, size, OVERHEAD = 0, 0, 64

local function append(command, from)
  for value = command.first + from, command.first + command.count - 1 do
    redis.call('XADD', outcomes, '*', 'outcome', ARGV[value])
    appended, size = appended + 1, size + #ARGV[value] + OVERHEAD
  end
end

-- Commands that need the claim to be held, but not its message, which may be large.
local act = {
  began = function(command)
    redis.call('HSET', claims, BEGAN .. command.tag, ARGV[command.first])
  end,
  note = function(command)
    append(command, 0)
  end,
  settle = function(command)
    append(command, 1)
    redis.call('HDEL', deaths, ARGV[command.first], 'back:' .. ARGV[command.first])
    release(command.tag)
  end,
}

-- Commands that move the message elsewhere.
local move = {
  back = function(command, claim)
    put('RPUSH', command.tag, claim, command.count > 0)
  end,
  requeue = function(command, claim)
    put('LPUSH', command.tag, claim, command.count > 0)
  end,
  lost = function(command, claim)
    local id, most = ARGV[command.first], whole(ARGV[command.first + 1], MOST_TURNS, 'limit of deaths')
    if redis.call('HINCRBY', deaths, id, 1) > most then
      append(command, 2)
      redis.call('HSET', dead, id, claim)
      redis.call('HDEL', deaths, id)
      release(command.tag)
    else
      put('RPUSH', command.tag, claim, true)
    end
  end,
  park = function(command, claim)
    redis.call('ZADD', parked, ARGV[command.first], claim)
    release(command.tag)
  end,
  unknown = function(command, claim)
    redis.call('ZADD', unknown, now, claim)
    release(command.tag)
  end,
  aside = function(command, claim)
    redis.call('LPUSH', unreadable, claim)
    redis.call('LTRIM', unreadable, 0, 999)
    release(command.tag)
  end,
}

for _, command in ipairs(commands) do
  if command.kind == 'loose' then
    append(command, 0)
  elseif command.kind == 'ring' then
    wake(ARGV[command.first])
  elseif command.tag ~= '' then
    local done = false
    if command.kind == 'hold' then
      done = held[command.tag]
    elseif act[command.kind] then
      done = redis.call('HEXISTS', claims, command.tag) == 1
      if done then
        act[command.kind](command)
      end
    elseif move[command.kind] then
      local claim = redis.call('HGET', claims, command.tag)
      done = claim
      if claim then
        move[command.kind](command, claim)
      end
    else
      refuse('a command is of no known kind')
    end
    if not done and not told_stale[command.tag] then
      told_stale[command.tag] = true
      stale[#stale + 1] = command.tag
    end
  end
end

for _, tag in ipairs(unheard) do
  put('RPUSH', tag, redis.call('HGET', claims, tag), redis.call('HEXISTS', claims, BEGAN .. tag) == 1)
end

-- Return about how many bytes of outcomes wait: the number of entries, times the average size of those appended since
-- there were none. Redis could count them exactly, but not in constant time.
local function backlog()
  local waiting, key = redis.call('XLEN', outcomes), outcomes .. ':bytes'
  local sum, entries = 0, 0
  if waiting > appended then
    local told = redis.call('GETRANGE', key, 0, 2 * DIGITS)
    local first, second = string.match(told, '^(%d+) (%d+)$')
    sum, entries = tonumber(first) or 0, tonumber(second) or 0
  end
  sum, entries = sum + size, entries + appended
  if appended > 0 then
    redis.call('SET', key, string.format('%.0f %.0f', sum, entries))
  end
  return entries > 0 and sum / entries * waiting or 0
end

local given, position = {}, 0
local told = revoked_since(known)
local waiting = (wanted > 0 or appended > 0) and backlog() or 0
local full = wanted > 0 and waiting >= limit
if wanted > 0 and not full and #told <= MOST_REVOKED then -- what is given out may be among the revoked not yet told
  for key = 3, 2 + lists do
    while position < wanted and (position == 0 or bytes > 0) do
      local message = redis.call('LINDEX', KEYS[key], -1)
      if not message then
        break
      end
      position = position + 1
      redis.call('HSET', claims, tag_of(number, position), KEYS[key] .. '\n' .. message)
      redis.call('RPOP', KEYS[key])
      given[#given + 1], given[#given + 2], given[#given + 3] = tag_of(number, position), KEYS[key], message
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
if fenced then
  redis.call('HDEL', turns, 'fenced')
end
redis.call('PEXPIRE', turns, 100 * lease)
redis.call('ZADD', leases, now + lease, owner)
return {'ok', given, stale, told, full and 1 or 0, now}
