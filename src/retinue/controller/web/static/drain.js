// A server is drained as `retinue server drain` does it: it takes no more VMs, and those it has go one by one.

import { ended } from "./model.js";
import { path, post } from "./rest.js";
import { count } from "./words.js";

/** `targets()`: the servers that take VMs; `tell` is told how far it is. Rejects where a VM cannot go. */
export async function drain(model, server, targets, tell) {
  const { vms } = await post(path`/v1/servers/${server}/drain`);
  let gone = 0;
  for (const vm of vms) {
    tell(`${gone} of ${count(vms.length, "VM")} have gone; ${vm} goes now.`);
    const end = await moved(model, vm, fewest(model, server, targets()));
    if (end.state !== "done")
      throw new Error(
        `${end.id} of ${vm} was undone: ${end.reason}. The rest stays; ${server} takes no VMs.`,
      );
    gone += 1;
  }
  tell(`${server} is drained: ${count(gone, "VM")} gone.`);
}

/** The server with the fewest VMs, those on their way there among them. */
function fewest(model, server, servers) {
  const load = new Map(servers.filter((row) => row.id !== server).map((row) => [row.id, 0]));
  if (!load.size) throw new Error("there is no other server that takes VMs");
  for (const vm of model.vms.values()) {
    const at = model.migrationOf(vm.id)?.target ?? vm.server;
    if (load.has(at)) load.set(at, load.get(at) + 1);
  }
  return [...load].reduce((best, one) => (one[1] < best[1] ? one : best))[0];
}

/** The migration, when it has ended. */
async function moved(model, vm, target) {
  const { id } = await post("/v1/migrations", { vm, target_server: target });
  return new Promise((done) => {
    const look = () => {
      const migration = model.migrations.get(id);
      if (!migration || !ended(migration)) return;
      leave();
      done(migration);
    };
    const leave = model.listen(look);
    look();
  });
}
