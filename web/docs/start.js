/**
 * Renders the API documentation from /openapi.json with swagger-ui 5.35.0 (Apache-2.0, with its
 * licence in swagger-ui/). `validatorUrl: null` disables the validator on the internet.
 */
/** @type {any} */ (window).SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#documents",
  deepLinking: true,
  validatorUrl: null,
  persistAuthorization: false,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
});
