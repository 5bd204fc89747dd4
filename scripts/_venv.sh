# Sourced by the other scripts: makes .venv in the checkout and installs the project into it.
# usage: . scripts/_venv.sh; make_venv EXTRA
# Needs bash, Python 3.11 or newer with venv, and PyPI (or a mirror named by pip's own settings). Never root.

die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in "${DOCDUET_PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo "$candidate"; return; }
  done
  die "no Python 3.11 to 3.13 found: install one, or name it in DOCDUET_PYTHON"
}

make_venv() {
  local extra=$1 python stamp
  # The stamp changes with what decides the installation, so a second run installs nothing.
  stamp="$extra $(cat pyproject.toml constraints.txt | cksum)"
  [ -f .venv/.docduet ] && [ "$(cat .venv/.docduet)" = "$stamp" ] && return
  python=$(find_python) || exit 1
  [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || {
    echo "Making the virtual environment .venv with $($python --version)"
    "$python" -m venv --clear .venv || die "making .venv failed: on Debian and Ubuntu, install the package python3-venv"
  }
  echo "Installing docduet[$extra] (the first time takes minutes: PyTorch is large)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extra]" ||
    die "pip could not install docduet[$extra]: see its message above. Without access to PyPI, set PIP_INDEX_URL to a mirror"
  echo "$stamp" > .venv/.docduet
}
