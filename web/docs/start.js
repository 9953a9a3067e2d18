/**
 * Draws the documentation of the API out of /openapi.json. Nothing is fetched from elsewhere: the
 * viewer (swagger-ui 5.35.0, Apache-2.0, beside its licence in swagger-ui/) would otherwise ask a
 * validator on the internet.
 */
window.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#documents",
  deepLinking: true,
  validatorUrl: null,
  persistAuthorization: false,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
});
