-- wrk with think times, drawn evenly between its two arguments in seconds: one line of JSON with what has failed.
function init(args)
    low_ms, high_ms = args[1] * 1000, args[2] * 1000
    math.randomseed(os.time())
end

function delay()
    return math.random(low_ms, high_ms)
end

function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n',
        errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
