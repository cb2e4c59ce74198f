// Sends the request of a form to this server and shows the answer as text.
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const output = form.querySelector("output");
    const body = form.querySelector("textarea");
    const key = document.querySelector("#key");
    const headers = {};
    if (body) headers["Content-Type"] = "application/json";
    if (key && key.value) headers["Authorization"] = "Bearer " + key.value;
    output.textContent = "…";
    try {
      const answer = await fetch(form.dataset.path, {
        method: form.dataset.method,
        headers,
        body: body ? body.value : undefined,
      });
      output.textContent = answer.status + " " + answer.statusText + "\n" + (await answer.text());
    } catch (error) {
      output.textContent = String(error);
    }
  });
}
