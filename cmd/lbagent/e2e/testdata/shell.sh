#!/bin/sh
# What a shell script can do with lbagent: ask over the unix socket, or call through the port.
# Usage: shell.sh SOCKET SERVICE PORT      (Debian: curl)
set -eu
socket=$1 service=$2 port=$3

# Ask: "address":"10.0.0.1:80" of one pick. With jq it would be: jq -r '.picks[0].address'
address=$(curl -sS --fail --unix-socket "$socket" "http://lbagent/v1/services/$service/pick" |
  sed -n 's/.*"address": *"\([^"]*\)".*/\1/p')
echo "picked $address"
curl -sS --fail "http://$address/asked"

# Tell how it went, so that others profit.
curl -sS --fail --unix-socket "$socket" http://lbagent/v1/report \
  --data "{\"outcomes\": [{\"service\": \"$service\", \"address\": \"$address\", \"result\": \"RESULT_SUCCESS\"}]}"

# Dial: the port does both.
curl -sS --fail "http://127.0.0.1:$port/dialed"
