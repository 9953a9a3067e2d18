#!/bin/sh
# Install the units, users and folders on this host, as root. It can be repeated: it replaces units,
# keeps the files of /etc/scoreboard, and starts nothing. docs/how-to/systemd.md describes the rest.
set -eu
cd "$(dirname "$0")"

install -d /etc/systemd/system/scoreboard-.service.d /etc/sysusers.d /etc/tmpfiles.d
install -m 644 units/*.target units/*.service units/*.timer /etc/systemd/system/
install -m 644 units/scoreboard-.service.d/*.conf /etc/systemd/system/scoreboard-.service.d/
install -m 644 scoreboard.sysusers /etc/sysusers.d/scoreboard.conf
install -m 644 scoreboard.tmpfiles /etc/tmpfiles.d/scoreboard.conf
systemd-sysusers /etc/sysusers.d/scoreboard.conf
systemd-tmpfiles --create /etc/tmpfiles.d/scoreboard.conf

for file in etc/*; do
  [ -e "/etc/scoreboard/${file#etc/}" ] || install -m 640 "$file" "/etc/scoreboard/${file#etc/}"
done

# A service reads its secrets as a member of its group; the rotation owns and replaces them. It may put a
# link in their place, which root must not follow, also not between two commands.
for owner in api streamer flusher operator rotator kong; do
  for secret in "/var/lib/scoreboard/secrets/$owner"/*; do
    if [ ! -f "$secret" ] || [ -L "$secret" ]; then continue; fi
    chown -h "scoreboard-rotator:scoreboard-$owner" "$secret"
    runuser -u scoreboard-rotator -- chmod 640 "$secret"
  done
done

systemctl daemon-reload
