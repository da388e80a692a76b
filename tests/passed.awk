# Names of the tests that have said ok, from what a test program has printed with --nocapture: there that word stands alone behind a test's
# own lines. A test may run others, as another user: those are not meant.
/^running [0-9]+ tests?$/ { depth++ }
/^test result: / { depth-- }
depth > 1 { next }
/^test .* \.\.\. / { name = $2 }
/^ok$|^test .* \.\.\. ok$/ { if (name) print name; name = "" }
