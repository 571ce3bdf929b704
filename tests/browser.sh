#!/bin/sh
# Debian's Chromium for the tests of the report, where it is not there and can be installed; without it they are skipped.
command -v chromium >/dev/null 2>&1 && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || exit 0
export DEBIAN_FRONTEND=noninteractive
{ apt-get install -y --no-install-recommends chromium ||
    { apt-get update && apt-get install -y --no-install-recommends chromium; }; } >/dev/null 2>&1 ||
    echo "no Chromium could be installed: the tests of the report in a browser are skipped" >&2
