#!lua flags=allow-oom
-- Read streams of outcomes for the recorder, checking the size of each entry before it is returned.
--
-- KEYS        the streams, in reading order
-- ARGV[1..2]  the group and its consumer
-- ARGV[3..4]  most entries of one stream, and bytes of them after which no more of it is read
-- ARGV[5]     bytes of all after which no further stream is read
-- ARGV[6..7]  most bytes of an entry, and how many bytes of a larger one are returned
-- ARGV[8..]   three arguments per stream:
--               after   '>', or the entry after which to read again entries that were read and not confirmed
--               given   'all' if this process has received all that an earlier one left, else the last of those
--                       entries that it received, '-' if none
--               owner   'server': a missing stream is created, and a key of another type is kept;
--                       'worker': a missing stream is left out, and a key of another type is removed
-- Answer      {streams read, {stream, 'entries', id, size, times delivered, document, ...},
--              {stream, 'wrong', type}, {stream, 'failed', error}, ...}; streams count from 1, and those with nothing
--             to report are left out
--
-- Promise: an entry is returned whole or, if it is too large, only its beginning, and then it is deleted. Entries that
-- an earlier process left come one at a time, and only their delivery count is raised: an entry that ended
-- that process comes back alone and is known by its count. One stream's error affects no other. The script never waits.
--
-- It works while Redis is full (allow-oom): recording makes room.

local group, consumer = ARGV[1], ARGV[2]
local most, stream_bytes, all_bytes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local largest, beginning = tonumber(ARGV[6]), tonumber(ARGV[7])
local FIELD = 'outcome'
local NONE_AFTER = '18446744073709551615-18446744073709551614' -- none is later; the last id of all would mean '>'

local read = 0 -- bytes, of all streams

local function forget(key, id)
  redis.call('XACK', key, group, id)
  redis.call('XDEL', key, id)
end

-- Return the outcome in an entry, and the bytes of all its fields.
local function look(fields)
  local document, size = '', 0
  for at = 1, #fields, 2 do
    size = size + #fields[at] + #fields[at + 1]
    if fields[at] == FIELD then
      document = fields[at + 1]
    end
  end
  return document, size
end

local function add(told, key, entry, times)
  local id, fields = entry[1], entry[2]
  local document, size = look(fields)
  read = read + size
  if size > largest then
    document = string.sub(document, 1, beginning)
    forget(key, id)
  end
  told[#told + 1], told[#told + 2], told[#told + 3], told[#told + 4] = id, size, times, document
end

local function make_group(key)
  local made = redis.pcall('XGROUP', 'CREATE', key, group, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
    error(made)
  end
end

-- Reading several at once is cheaper than one by one; it is done where none of them can be large.
local function portion(key)
  if redis.call('XLEN', key) > 2 * most then
    return 1
  end
  return redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0) <= stream_bytes and most or 1
end

local function read_new(told, key)
  local at_once, count, from = portion(key), 0, read
  repeat
    local found = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', at_once, 'STREAMS', key, '>')
    for _, entry in ipairs(found and found[1][2] or {}) do
      add(told, key, entry, 1)
      count = count + 1
    end
  until not found or count >= most or read - from >= stream_bytes
end

local function read_again(told, key, after, given)
  local from, alone = read, given ~= 'all'
  local pending = redis.call('XPENDING', key, group, '(' .. after, '+', alone and 1 or most, consumer)
  for _, one in ipairs(pending) do
    local id, times = one[1], one[4]
    local entry = redis.call('XRANGE', key, id, id)[1]
    if not entry then -- it was removed meanwhile
      redis.call('XACK', key, group, id)
      told[#told + 1], told[#told + 2], told[#told + 3], told[#told + 4] = id, 0, 0, ''
    else
      if alone and id ~= given then
        times = times + 1
        redis.call('XCLAIM', key, group, consumer, 0, id, 'RETRYCOUNT', times, 'JUSTID')
      end
      add(told, key, entry, times)
    end
    if read - from >= stream_bytes then
      return
    end
  end
end

local function collect(index, told)
  local key, at = KEYS[index], 8 + 3 * (index - 1)
  local after, given, owner = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' and owner == 'worker' then
    return
  elseif kind ~= 'stream' and kind ~= 'none' then
    if owner == 'worker' then
      redis.call('UNLINK', key)
    end
    told[2], told[3] = 'wrong', kind
    return
  end
  make_group(key)
  -- Redis 7.0 updates when a consumer last read (the health check uses that) only if it receives an entry or asks
  -- again for entries that it received.
  redis.call('XREADGROUP', 'GROUP', group, consumer, 'STREAMS', key, NONE_AFTER)
  if after == '>' then
    read_new(told, key)
  else
    read_again(told, key, after, given)
  end
end

local answer = {0}
for index = 1, #KEYS do
  local told = {index, 'entries'}
  local well, problem = pcall(collect, index, told)
  if not well then
    told = {index, 'failed', type(problem) == 'table' and problem.err or tostring(problem)}
  end
  answer[1] = index
  if #told > 2 then
    answer[#answer + 1] = told
  end
  if read > largest then
    collectgarbage() -- Lua would keep it for long
  end
  if read >= all_bytes then
    break
  end
end
return answer
