#!/bin/sh
# Calls an HTTP service through both doors of lbagent: it asks for a backend and calls that, and it dials the service's port.
#
#   echo hello | sh client.sh SERVICE PORT      (Debian: curl)
#
# Each line of standard input is one call by each door.
set -u
socket=${LBAGENT_SOCKET:-/run/lbagent/lbagent.sock} service=$1 port=$2
last='' # the backend of the last call that went well

agent() { # PATH [CURL OPTIONS]; an agent that is there answers within a millisecond
  path=$1
  shift
  curl -sS --fail --max-time 1 --unix-socket "$socket" "$@" "http://lbagent/v1/$path" 2>/dev/null
}

# With jq: jq -r '.picks[0].address'
pick() {
  answer=$(agent "services/$service/pick${1:+?exclude=$1}") && expr "$answer" : '.*"address":"\([^"]*\)"' && return
  # No agent: the backend of the last good call, else the first of the list that the agent has left, which has its best one first.
  if [ -n "$last" ]; then echo "$last"; else sed -n '1s/ .*//p' "$(dirname "$socket")/lists/$service"; fi
}

report() { # ADDRESS, and what curl ended with; nothing hangs on whether it arrives
  case $2 in
  0) result=RESULT_SUCCESS ;;
  7) result=RESULT_CONNECT_FAILURE ;;
  28) result=RESULT_TIMEOUT ;;
  22) return ;; # a status of 400 or above; %{http_code} says which
  *) result=RESULT_FAILURE ;;
  esac
  agent report --data "{\"outcomes\": [{\"service\": \"$service\", \"address\": \"$1\", \"result\": \"$result\"}]}" >/dev/null
}

ask() { # a GET may be repeated: if the backend fails, once more on another one
  failed=''
  for try in 1 2; do
    address=$(pick "$failed")
    answer=$(curl -sS --fail --max-time 2 "http://$address/$1" 2>&1)
    code=$?
    report "$address" $code
    if [ $code -eq 0 ]; then
      last=$address
      echo "asked $address $answer"
      return
    fi
    failed=$address
  done
  echo "asked failed: $answer"
}

dial() { # the port balances by itself; while the agent restarts, curl tries again
  if answer=$(curl -sS --fail --max-time 2 --retry 3 --retry-connrefused --retry-delay 1 --retry-max-time 2 "http://127.0.0.1:$port/$1" 2>&1); then
    echo "dialed $answer"
  else
    echo "dialed failed: $answer"
  fi
}

while read -r word; do
  ask "$word"
  dial "$word"
done
