-- The figures as one line of JSON, after everything that wrk prints itself.
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\n{"done": %d, "bytes": %d, "failed": %d, "seconds": %.3f, "p50_us": %d, "p99_us": %d}\n',
    summary.requests, summary.bytes, failed, summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end
