// A table of pieces; see fleet/console/tables.py.  Below 760 px the style sheet turns rows into cards.
export default {
  template: `
    <div class="sk-table">
      <table>
        <thead>
          <tr><th v-for="c in columns" :key="c.name" :class="c.css" scope="col">{{ c.label }}</th></tr>
        </thead>
        <tbody>
          <tr v-for="r in rows" :key="r.id" class="sk-row" :class="r.css" v-bind="r.data"
              :data-testid="testid" :data-id="r.id">
            <td v-for="c in columns" :key="c.name" :data-label="c.label"
                :class="[c.css, { 'sk-void': !(r.cells[c.name] || []).length }]">
              <template v-for="(p, i) in r.cells[c.name] || []" :key="i">
                <a v-if="p.href" class="sk-piece" :class="p.css" :href="p.href" :title="p.title"
                   :download="p.download" :target="p.target" :data-testid="p.testid">{{ p.text }}</a>
                <button v-else-if="p.act" type="button" class="sk-piece sk-btn" :class="p.css"
                   :data-testid="p.testid" @click="$emit('act', { act: p.act, id: r.id })"
                   >{{ p.text }}</button>
                <time v-else-if="p.at !== undefined" class="sk-piece" :class="p.css"
                   :data-at="p.at" :data-as="p.as"></time>
                <span v-else-if="p.meter" class="sk-piece sk-meter" :title="p.title"
                   ><i v-for="(m, k) in p.meter" :key="k" :class="m.css"
                       :style="{ width: m.percent + '%' }"></i></span>
                <span v-else class="sk-piece" :class="p.css" :title="p.title"
                   :data-testid="p.testid">{{ p.text }}</span>
              </template>
            </td>
          </tr>
        </tbody>
      </table>
    </div>`,
  props: { columns: Array, rows: Array, testid: String },
  emits: ["act"],
};
