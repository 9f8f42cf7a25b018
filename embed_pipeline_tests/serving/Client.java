// Java's own HTTP client, which asks for HTTP/2 with its first request: java Client.java BASE_URL MODEL KEY
// Prints a line for each request: what was asked, the status, and the answer's beginning.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Client {
    static HttpClient client = HttpClient.newHttpClient();

    public static void main(String[] given) throws Exception {
        String one = "{\"model\": \"" + given[1] + "\", \"input\": \"python class\"}";
        String many = "{\"model\": \"" + given[1] + "\", \"input\": [\"in\", \"of\"], \"dimensions\": 16}";
        ask("one", given[0], one, given[2]);
        ask("again", given[0], one, given[2]);
        ask("many", given[0], many, given[2]);
        ask("base64", given[0], one.replace("}", ", \"encoding_format\": \"base64\"}"), given[2]);
        ask("wrong key", given[0], one, "wrong");
        client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        ask("HTTP/1.1", given[0], one, given[2]);
    }

    static void ask(String what, String base, String body, String key) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(base + "/embeddings"))
            .header("Content-Type", "application/json").header("Authorization", "Bearer " + key)
            .POST(HttpRequest.BodyPublishers.ofString(body)).build();
        HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(what + "\t" + answer.statusCode() + "\t" + answer.body().replace("\n", " "));
    }
}
