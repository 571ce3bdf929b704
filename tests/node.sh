#!/bin/sh
# Node for the tests of the SDK for the web, where it is not there and can be installed; without it they are skipped.
node --version 2>/dev/null | grep -Eq '^v(2[0-9]|[3-9][0-9])\.' && command -v npm >/dev/null 2>&1 && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || exit 0
export DEBIAN_FRONTEND=noninteractive
{ apt-get install -y --no-install-recommends nodejs npm ||
    { apt-get update && apt-get install -y --no-install-recommends nodejs npm; }; } >/dev/null 2>&1 ||
    echo "no Node could be installed: the tests of the SDK for the web are skipped" >&2
