#!/bin/sh
# Load policies, templates and the pipeline into Elasticsearch, and the saved objects into Kibana.
# It can be repeated; it replaces what it loaded before and changes nothing else.
#   ELASTICSEARCH_URL=https://elastic.example:9200 KIBANA_URL=https://kibana.example:5601 sh deploy/elastic/setup.sh
# Credentials: a curl configuration file, which does not show in the list of processes, in CURL_CONFIG.
#   printf 'header = "Authorization: ApiKey …"\n' > elastic.curl; chmod 600 elastic.curl
set -eu
cd "$(dirname "$0")"
: "${ELASTICSEARCH_URL:?set ELASTICSEARCH_URL}"

call() {
  curl --silent --show-error --fail-with-body --max-time 60 --retry 5 --retry-connrefused \
    ${CURL_CONFIG:+--config "$CURL_CONFIG"} "$@"
  echo
}

# put KIND API: each file elasticsearch/KIND.NAME.json goes to API/NAME.
put() {
  for file in elasticsearch/"$1".*.json; do
    name=${file#elasticsearch/"$1".}
    echo "$2/${name%.json}"
    call --request PUT --header 'Content-Type: application/json' --data-binary "@$file" \
      "$ELASTICSEARCH_URL/$2/${name%.json}"
  done
}

# An index template names its component templates, and these name the policy and the pipeline.
put ilm-policy _ilm/policy
put ingest-pipeline _ingest/pipeline
put component-template _component_template
put index-template _index_template

if [ -n "${KIBANA_URL:-}" ]; then
  echo saved objects
  call --request POST --header 'kbn-xsrf: true' --form file=@kibana/saved-objects.ndjson \
    "$KIBANA_URL/api/saved_objects/_import?overwrite=true"
fi
