# Sourced by scripts/test: the browser tests drive a system Chromium and skip without one.
# On a Debian machine where we are root (a container, CI) it is installed; nobody else needs root.
ensure_chromium() {
  local name
  for name in chromium chromium-browser google-chrome; do command -v "$name" >/dev/null 2>&1 && return; done
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Chromium for the browser tests"
    local said
    said=$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } 2>&1) && return
    echo "It could not be installed: $(tail -n 1 <<<"$said")"
  fi
  echo "No Chromium found: the browser tests will be skipped"
}
