#!/bin/sh
# Makes the repository on first start, refreshes its settings and hook on each, then serves.
set -eu
repository=/srv/git/lab.git
export HOME=/tmp
[ -d "$repository" ] || git init -q --bare -b main "$repository"
git -C "$repository" config http.receivepack true
# Nobody's commits are ever pushed over.
git -C "$repository" config receive.denyNonFastForwards true
git -C "$repository" config core.hooksPath /usr/local/share/git-hooks
exec lighttpd -D -f /etc/lighttpd-git.conf
