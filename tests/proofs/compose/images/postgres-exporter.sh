#!/bin/sh
# Debian's version has the statistics that PostgreSQL 17 moved in another collector.
exec prometheus-postgres-exporter --no-collector.bgwriter
